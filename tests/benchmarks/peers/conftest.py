"""Scripts of other environments: nothing here is for pytest."""

collect_ignore_glob = ["*.py"]
