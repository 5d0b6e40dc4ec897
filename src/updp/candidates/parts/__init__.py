"""What several candidates are made of."""
