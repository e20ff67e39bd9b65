"""Memory: folds over the log. The workflow fold says what is true; views say it to people."""
