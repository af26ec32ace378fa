"""How a float network becomes int8."""
