// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"fmt"
	"io"
	"net/http"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
)

// registry fetches from one repository.
type registry struct {
	puller *remote.Puller
	repo   name.Repository
	// top is what the reference itself named, already read.
	top *remote.Descriptor
}

// openRegistry asks the registry for ref and reads what it names.
func openRegistry(ctx context.Context, ref name.Reference, o Options) (*source, error) {
	if o.InsecurePlainHTTP {
		again, err := name.ParseReference(ref.String(), name.WeakValidation, name.Insecure)
		if err != nil {
			return nil, fmt.Errorf("parsing image reference: %w", err)
		}
		ref = again
	}
	puller, err := remote.NewPuller(
		remote.WithAuthFromKeychain(authn.DefaultKeychain),
		remote.WithTransport(&httpsOnly{next: remote.DefaultTransport, allow: o.InsecurePlainHTTP}),
		remote.WithUserAgent("coffer"),
		remote.WithPlatform(o.platform()))
	if err != nil {
		return nil, fmt.Errorf("opening registry: %w", err)
	}
	top, err := puller.Get(ctx, ref)
	if err != nil {
		return nil, fmt.Errorf("asking registry for %s: %w", Familiar(ref.Name()), err)
	}
	r := &registry{puller: puller, repo: ref.Context(), top: top}
	return load(ctx, r, top.Descriptor, o.platform())
}

func (r *registry) manifest(ctx context.Context, d v1.Descriptor) ([]byte, error) {
	if d.Digest == r.top.Digest {
		return r.top.Manifest, nil
	}
	got, err := r.puller.Get(ctx, r.repo.Digest(d.Digest.String()))
	if err != nil {
		return nil, err
	}
	return got.Manifest, nil
}

func (r *registry) blob(ctx context.Context, d v1.Descriptor) (io.ReadCloser, error) {
	l, err := r.puller.Layer(ctx, r.repo.Digest(d.Digest.String()))
	if err != nil {
		return nil, err
	}
	return l.Compressed()
}

// httpsOnly refuses plain HTTP to other machines, also where a registry
// redirects to it. The registry client by itself would fall back to HTTP for
// private addresses.
type httpsOnly struct {
	next  http.RoundTripper
	allow bool
}

func (t *httpsOnly) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.URL.Scheme != "https" && !t.allow && !loopback(req.URL.Host) {
		return nil, fmt.Errorf("refusing plain HTTP to %s (--insecure-plain-http allows it)", req.URL.Host)
	}
	return t.next.RoundTrip(req)
}
