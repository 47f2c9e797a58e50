package erofs

// UnpackLZ4 is the decoder of this package's tests.
var UnpackLZ4 = decodeLZ4
