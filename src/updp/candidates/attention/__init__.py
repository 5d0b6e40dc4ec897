"""`attention`: self-attention with fewer or smaller heads."""
