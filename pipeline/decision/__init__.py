"""Whether, and how, to ship int8: a ladder of methods climbed to a budget, and the gate for what is to be shipped."""
