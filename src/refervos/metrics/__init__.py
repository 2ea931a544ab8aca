"""How good masks are: region similarity J and boundary accuracy F."""
