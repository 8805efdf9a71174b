// SPDX-License-Identifier: Apache-2.0

// Command mklayer converts the layer tar on standard input to the image named by its
// argument, and prints the root hash and the number of data blocks. It is a
// program of its own because the guest, and its tests, do not import layer.
package main

import (
	"context"
	"fmt"
	"log"
	"os"

	"github.com/coffer-dev/coffer/layer"
)

func main() {
	f, err := os.Create(os.Args[1])
	if err != nil {
		log.Fatal(err)
	}
	img, err := layer.Convert(context.Background(), os.Stdin, f)
	if err != nil {
		log.Fatal(err)
	}
	if err := f.Close(); err != nil {
		log.Fatal(err)
	}
	fmt.Println(img.Root, img.DataBlocks)
}
