"""A shop of text episodes, after WebShop."""
