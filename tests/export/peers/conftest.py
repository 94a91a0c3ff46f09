"""Peers' programs run in environments of their own: pytest imports none of them."""

collect_ignore_glob = ["*.py"]
