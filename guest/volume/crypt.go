// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
)

func (d *Disks) scratchDisk(ctx context.Context, target string) error {
	return errors.New("preparing scratch: a scratch disk is not supported yet")
}
