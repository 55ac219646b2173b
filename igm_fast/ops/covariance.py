"""To come: operators of the covariance."""
