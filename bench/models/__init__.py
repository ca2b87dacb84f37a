"""`python -m bench.models`: what placing, showing, swapping and copying models costs. One module for each part."""
