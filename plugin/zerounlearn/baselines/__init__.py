"""The field's own unlearning methods, to compare with: gradient descent through the model on a published objective.

GA, GradDiff, NPO, SimNPO, DPO, IdkPO and RMU share one loop, one class of hyperparameters a method, and the requests,
the tokens and the layout of the layers below. Nothing here knows EasyEdit.

Reading order: `objectives` (one formula a function), `hparams`, `sequences` (what is read from a model), `terms` (a
method's losses on a model), `descend` (the loop).
"""
