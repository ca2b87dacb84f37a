# What tier 4 decides differently.
locals {
  # The first has the primary database; others are standbys.
  regions = ["us-central1"]
  # Where the mesh machine runs.
  active               = "us-central1"
  cache_tier           = "BASIC"
  kms_keys             = {}
  binary_authorization = false
}
