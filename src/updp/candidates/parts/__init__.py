"""Parts that several candidates share."""
