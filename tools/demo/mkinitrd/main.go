// Command mkinitrd writes the demonstration guest's initial RAM disk, for use with any boot of one's own:
//
//	go run ./tools/demo/mkinitrd build/demo/initrd.cpio
package main

import (
	"context"
	"fmt"
	"os"

	"ironspan/tools/demo/initrd"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: mkinitrd FILE")
		os.Exit(2)
	}
	if err := initrd.Build(context.Background(), os.Args[1], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
