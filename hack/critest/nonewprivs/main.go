// Command nonewprivs prints its effective user. In its image it is a set-user-ID program of root's, so what it prints
// shows whether no_new_privs was set.
package main

import (
	"fmt"
	"os"
)

func main() { fmt.Printf("Effective uid: %d\n", os.Geteuid()) }
