"""Finished runs to the Hub or any other place, with card, provenance and everything that proves them."""
