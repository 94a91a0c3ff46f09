"""Web sites as a source: a polite crawl that can be killed, and repeated every night for what has changed."""
