"""Training of a backbone on labelled photos, up to the bundle.

`dataset` selects images, `photos` decodes them, `loop` trains, `checkpoint` stores progress,
`classifier` fits the linear classifier of `predict`. Imports `core` to `evaluation`; imported by
`jobs` only.
"""
