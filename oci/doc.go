// Package oci is the built-in low-level runtime as the daemon sees it. [Build] turns what a CRI client asked for
// into an OCI runtime configuration (runtime-spec v1.3), [Compile] turns any such configuration into the message for the
// init, and [Runtime] does both for a container and owns its control group. What a client got wrong is
// a [FieldError] that names the field; what a configuration asks for and this runtime cannot do is an
// [UnsupportedError], never silence.
package oci
