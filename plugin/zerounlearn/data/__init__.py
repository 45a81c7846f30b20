"""What is forgotten and kept: facts, requests and the field's data sets, from local files or the hub.

Reading order: `text` (what texts may hold, and where one names another), `request`, `records` (the one reader),
`locate` (subjects of questions that name none), `fact` (facts and their layouts), `entry` (what a data set gives),
`catalogue` and `sets` (data sets by name), `protocol` (which entries a run forgets), `known` (which facts a model
knows), `lengths` (which fit a context), `chat`, `corpora` (ordinary text), `retain` and `subjects` (what is kept).
"""
