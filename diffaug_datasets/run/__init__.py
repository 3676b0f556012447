"""Run folders: who does which unit, immutable shards, receipts. Never names a method."""
