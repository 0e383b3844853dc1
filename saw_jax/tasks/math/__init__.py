"""Math problems with one right answer."""
