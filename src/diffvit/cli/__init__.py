"""The command line: parses, calls one function, prints."""

from cyclopts import Group

OPTIONS = Group("Options", sort_key=1)  # of a verb, before its settings
