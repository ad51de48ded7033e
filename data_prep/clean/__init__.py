"""Rules that change documents or leave them out; each decision has a rule, a reason, a value."""

from data_prep.clean.cleaner import Cleaner, identity
from data_prep.clean.rule import Dropped, Rule
from data_prep.clean.rules import CleanRule, RuleDescription, describe_rules

__all__ = [
    "CleanRule",
    "Cleaner",
    "Dropped",
    "Rule",
    "RuleDescription",
    "describe_rules",
    "identity",
]
