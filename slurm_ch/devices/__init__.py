# SPDX-License-Identifier: Apache-2.0
"""The Container Device Interface: read its spec files, and find what they change in a container. Changes nothing."""
