package cri

import "google.golang.org/protobuf/proto"

// What one message of a streamed list holds at most; an item that is larger goes alone. Clients take 4 MiB by default.
const (
	pageItems = 256
	pageBytes = 1 << 20
)

// pager sends a list in pages. "lists of at least one item": an empty list is no page.
type pager[T proto.Message] struct {
	send  func(page []T) error
	page  []T
	bytes int
}

// add sends what was added before when the item does not fit beside it.
func (p *pager[T]) add(item T) error {
	size := proto.Size(item)
	if len(p.page) == pageItems || p.bytes+size > pageBytes {
		if err := p.flush(); err != nil {
			return err
		}
	}
	p.page, p.bytes = append(p.page, item), p.bytes+size
	return nil
}

func (p *pager[T]) flush() error {
	if len(p.page) == 0 {
		return nil
	}
	page := p.page
	p.page, p.bytes = nil, 0
	return p.send(page)
}
