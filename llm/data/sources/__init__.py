"""One module per kind of source: `snapshot` says what would be read, `pieces` cuts it up, `read` reads a piece."""
