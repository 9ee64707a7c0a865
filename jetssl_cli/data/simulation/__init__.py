"""Jets from nothing: Pythia 8, a parametrised detector like CMS, jet clustering, ROOT files."""
