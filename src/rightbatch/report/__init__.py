"""The answer for people: a terminal table, one sentence, one page."""
