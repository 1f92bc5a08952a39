"""Makes the checkout importable for the tests (the product itself is installed under SAFE)."""
