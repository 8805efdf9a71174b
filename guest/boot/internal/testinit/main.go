// SPDX-License-Identifier: Apache-2.0

// Command testinit boots as the guest does and powers off. The kernel's command
// line may say otherwise, for the tests of package boot:
//
//	testinit=off    power off at once: the floor of what a boot takes
//	testinit=all    wait for all modules of the boot
//	testinit=fatal  end by boot.Fatal
//	testinit=panic  panic in a guarded goroutine
package main

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/coffer-dev/coffer/guest/boot"
)

func main() {
	start := time.Now()
	mode := os.Getenv("testinit") // the kernel makes it of "testinit=" on its command line
	if mode == "off" {
		boot.PowerOff()
	}
	modules, err := boot.Start()
	if err != nil {
		boot.Fatal(err)
	}
	switch mode {
	case "fatal":
		boot.Fatal(errors.New("testing:\nthe end"))
	case "panic":
		go func() {
			defer boot.Guard()
			panic("testing the end")
		}()
		select {}
	}
	if mode == "all" {
		if err := modules.Load("dm_verity", "overlay", "virtio_blk", "virtio_net"); err != nil {
			boot.Fatal(err)
		}
	}
	up, _ := os.ReadFile("/proc/uptime")
	fmt.Printf("testinit: booted in %d us, uptime %s\n", time.Since(start).Microseconds(), strings.Fields(string(up))[0])
	boot.PowerOff()
}
