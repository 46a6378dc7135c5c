"""How results look in text: one table of rates, with one set of marks, headings and numbers."""
