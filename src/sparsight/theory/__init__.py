"""What a model can be said to have learned, beside answers known from theory: the local learning coefficient."""
