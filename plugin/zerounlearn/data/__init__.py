"""The field's data sets as facts to forget, from local files or from the hub, validated field by field.

Every loader returns a list of entries; an entry has its `facts` (one, but for MQuAKE) and whatever else the data
set's own metrics need. Reading order: `records` (files, the hub, validation), `entry`, `locate` (subjects of
questions that name none), `counterfact`, `zsre`, `mquake`, `known`, `rwku`, `tofu`, `protocol` (which facts a run
forgets), `catalogue` (all of them by name).
"""
