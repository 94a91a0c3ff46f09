"""What a corpus is made of: figures, a page, and a data card."""
