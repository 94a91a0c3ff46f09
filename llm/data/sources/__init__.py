"""One file per kind of source: `snapshot` says what would be read, `read` reads it."""
