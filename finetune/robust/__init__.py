"""Training that resists noise, few examples and rare classes: objectives, and noise on the texts.

`config` is torch-free; `objectives.objective_of` is what a run trains by.
"""
