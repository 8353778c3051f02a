"""What lies on disk: files written whole, folders held, the prepared dataset."""
