"""Templates of the pages that people read: cards and the report."""
