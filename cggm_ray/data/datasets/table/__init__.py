"""The dataset `table`: files with a row for each sample, whose columns are numbers, categories, texts, images and arrays."""
