"""Where images come from: digits, folders, Parquet files, a user's own loaders."""
