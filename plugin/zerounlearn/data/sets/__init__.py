"""The field's data sets, one module each, registered in `zerounlearn.data.catalogue`."""
