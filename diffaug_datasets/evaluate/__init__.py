"""Looking at results: pages, tables, numbers."""
