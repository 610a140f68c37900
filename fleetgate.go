package tiercache

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/tiercache/tiercache/rebuild"
)

// permit waits for a permit of the fleet gate, which the load under ctx holds until leave. Whoever gets none in time was turned away, as by
// the process's own gate: the source was not called, and has not failed.
func permit(ctx context.Context, wait time.Duration, gate *rebuild.Semaphore, name string) (leave func(), err error) {
	waiting, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	leave, err = gate.Enter(waiting, name)
	switch {
	case err == nil:
		return leave, nil
	case errors.Is(context.Cause(ctx), ErrClosed):
		return nil, ErrClosed
	}
	return nil, fmt.Errorf("%w: no permit of the fleet gate: %w", ErrOverloaded, err)
}

// throughFleetGate has every call of the loaders hold a permit.
func (o *Options[K, V]) throughFleetGate() {
	if o.FleetGate == nil {
		return
	}
	gate, name, wait := o.FleetGate, o.Name, o.LoadTimeout/2 // before the load's own time is over, which would count as a failure of the source
	if load := o.Load; load != nil {
		o.Load = func(ctx context.Context, key K) (V, error) {
			leave, err := permit(ctx, wait, gate, name)
			if err != nil {
				return *new(V), err
			}
			defer leave()
			return load(ctx, key)
		}
	}
	if load := o.LoadMany; load != nil {
		o.LoadMany = func(ctx context.Context, keys []K) (map[K]V, error) {
			leave, err := permit(ctx, wait, gate, name)
			if err != nil {
				return nil, err
			}
			defer leave()
			return load(ctx, keys)
		}
	}
}
