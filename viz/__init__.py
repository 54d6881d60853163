"""Drawing: pictures from result tables and arrays, without torch and without a model."""
