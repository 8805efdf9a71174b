// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"github.com/coffer-dev/coffer/host/image"
)

// progress shows how layers come in: bars on a terminal, else one line when a
// layer is done.
type progress struct {
	out  io.Writer
	bars *mpb.Progress // nil without a terminal

	mu    sync.Mutex // guards layer
	layer map[string]*mpb.Bar
}

func (a *app) newProgress() *progress {
	p := &progress{out: a.stderr, layer: make(map[string]*mpb.Bar)}
	if f, ok := a.stderr.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		p.bars = mpb.New(mpb.WithOutput(f), mpb.WithWidth(40))
	}
	return p
}

func (p *progress) update(u image.Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.bars == nil {
		switch u.Stage {
		case image.Exists:
			fmt.Fprintf(p.out, "layer %s: already there\n", shortID(u.Layer))
		case image.Done:
			fmt.Fprintf(p.out, "layer %s: converted\n", shortID(u.Layer))
		case image.Converting:
		}
		return
	}
	bar := p.layer[u.Layer]
	if bar == nil {
		bar = p.bars.AddBar(u.Total, mpb.PrependDecorators(decor.Name(shortID(u.Layer)+" ")),
			mpb.AppendDecorators(decor.OnComplete(decor.CountersKiloByte("% .1f / % .1f"), "done")))
		p.layer[u.Layer] = bar
	}
	switch u.Stage {
	case image.Converting:
		if u.Total > 0 {
			bar.SetTotal(u.Total, false)
		}
		bar.SetCurrent(u.Current)
	case image.Exists, image.Done:
		bar.SetTotal(-1, true)
	}
}

// finish waits until the last state has been drawn.
func (p *progress) finish(err error) {
	if p.bars == nil {
		return
	}
	if err != nil {
		p.mu.Lock()
		for _, bar := range p.layer {
			bar.Abort(false)
		}
		p.mu.Unlock()
	}
	p.bars.Wait()
}
