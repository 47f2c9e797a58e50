//go:build payload

package payload

import _ "embed"

//go:embed files/cri-shim-supervisor
var supervisor string

//go:embed files/cri-shim-classes
var classesProgram string

//go:embed files/cri-shim-init
var initProgram string
