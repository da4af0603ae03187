"""What a reader sees: claims decided, truths recovered, one HTML page. All from tables, none of it needs torch."""
