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

// throughFleetGate waits for the permit that a call of the loaders is to hold until leave, if there is a fleet gate.
func (c *Cache[K, V]) throughFleetGate(ctx context.Context) (leave func(), err error) {
	if c.o.FleetGate == nil {
		return func() {}, nil
	}
	// Before the load's own time is over, which would count as a failure of the source.
	return permit(ctx, c.o.LoadTimeout/2, c.o.FleetGate, c.o.Name)
}
