"""Methods of unlearning in one registry: ZeroUnlearn's closed forms, and gradient descent on published objectives."""
